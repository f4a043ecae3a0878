// Package status has the values that say what an appliance is doing: the snapshot of one node and the events of its
// journal.
//
// The packages below it collect these values and show them; none of them changes anything. Their goroutines, each
// started and awaited by the function that is named:
//
//	web.Page.Run          renders the page once for all viewers; sleeps while there are none
//	report.Collector.Ask  one per question to a peer; Collector.Wait waits for them
//	journal.Journal.Run   owns the files of the journal
//	history.Samples.Run   takes the samples behind the charts, every 5 s
//	web.Serve             one per connection; Serve closes them when it ends
package status

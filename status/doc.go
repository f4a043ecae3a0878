// Package status shows what an appliance is doing; it reads snapshots and
// changes nothing.
//
// Its goroutines, each started and awaited by the Run or Serve that is named:
//
//	Page.Run       renders the page, for all who look at once; nobody looks: it sleeps
//	question       asks one peer for its report; Page.Run waits for it
//	Journal.Run    the files of the journal
//	Samples.Run    what the charts are made of, every 5 s
//	a handler      one request or stream; Serve closes its connection in the end
package status

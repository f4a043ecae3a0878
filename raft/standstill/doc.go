// Package standstill notices that the machine stood still while the clock of its leases did.
//
// A virtual machine that is paused may stop all clocks that its kernel keeps. They agree when it goes on, and nothing
// that they say shows the pause. So this package looks at what the hypervisor shows of itself, and at what others set:
//
//   - the host's clock, /dev/ptp of the driver ptp_kvm: it goes on during a pause;
//   - the page of the device vmclock (Linux 6.13): a number in it changes with each live migration and each snapshot;
//   - the event NEW_VMGENID of the driver vmgenid (Linux 6.10): the machine was started from a snapshot, or is a copy;
//   - the time of day: a time service, or an agent of the hypervisor, sets it forward after a pause.
//
// The first two are seen by the first look after the pause. The event comes within moments. The time of day is set when
// somebody gets to it, which may be after the lease is over.
package standstill

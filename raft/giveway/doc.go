// Package giveway limits how often holders give way to fitter peers.
//
// A holder gives way to a peer that is fitter, and it asks that peer a moment before. Where the new holder finds
// itself no fitter all the same, or where fitness changes faster than the address can follow, the address would move
// as fast as hand-overs can, and no client would be served. So peers tell each other when they gave way, and for what
// reason. For one reason, maxVain hand-overs that follow another within vainBefore, and maxHandovers in all, are free.
// After that there is one try per minute in the whole group, until it has been calm for calmAfter.
package giveway

// Mutants changes one line of the orderings that "never two" rests on, again and again, and checks that each change
// makes the test fail that is named for it.
package main

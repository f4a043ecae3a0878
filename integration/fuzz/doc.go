// Fuzz runs every fuzz target of the project in turns, and keeps what they find.
package main

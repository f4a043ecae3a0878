// Command calm keeps a group of three at work on a machine that has far too much to do, and counts what moves although
// nothing fails: changes of the holder, elections, and peers that are said to have vanished. `make calm` writes the page
// docs/benchmarks/calm.md. Each of its rows takes ten minutes (CALM_FOR).
//
// The processes have what the printed pod has: the capabilities NET_ADMIN and NET_RAW only, so no niceness, and a CPU
// weight of 100m beside processes that together asked for the rest of the machine.
package main

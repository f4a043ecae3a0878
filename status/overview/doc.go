// Package overview joins the reports of all nodes into one view of the group.
package overview

// Package sysctl sets kernel parameters and puts them back.
package sysctl

"""Every kind of write, one type each in its domain's file: what it touches, what it reads, and what it changes."""

"""Every kind of write, one type each in its domain's file: what it touches, what it must see, and what it does to the rows it meets."""

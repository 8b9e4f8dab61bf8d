"""What `memoryctl provision` plans and makes; one module for each kind of thing."""

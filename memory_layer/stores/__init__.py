"""The world outside this process: one module or folder for each kind of thing. ``service/installation.py`` opens them."""

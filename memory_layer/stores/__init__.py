"""Everything outside this process: one module or folder for each kind of store or service. ``service/installation.py`` opens them."""

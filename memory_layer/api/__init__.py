"""The HTTP door. ``operations.py`` is the table that routes, authorises, decodes and documents every call."""

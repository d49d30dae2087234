"""What `config.py` is made of: the base of its sections, and the settings of experts,
questions, learning and evaluation.

`config.py` is the page to read; it offers every section of the other files. May import the
libraries of the settings alone.
"""

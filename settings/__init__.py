"""What `config.py` is made of: the base of its sections, and the settings of experts and
questions.

`config.py` is the page to read; it offers every name of `experts.py` and `data.py`. May import the
libraries of the settings alone.
"""

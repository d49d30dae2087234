"""How an answer is judged against a reference: text and number metrics, model-based metrics, and
their registry.

May import config, runtime, questions and `backends.model_source`.
"""

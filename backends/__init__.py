"""Where answers come from: the kinds of experts, the scheduler that asks them, and the store of
every answer.

Each kind is a class with the methods of `dispatch.Expert`; `experts.build_expert` makes one from
its configuration. May import config, runtime, prompts and questions; knows neither the pool nor the
decision process.
"""

"""The kinds of experts that a pool can hold: each a class with the methods of `dispatch.Expert`, built by `experts.build_expert`."""

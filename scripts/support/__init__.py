"""Parts of the commands in `scripts/`: the benchmark's measurements, the builder of the embedded
pool, sources of public data.
"""

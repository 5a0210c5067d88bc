"""What the package costs, against the least that it could and against what people would use instead.

    python -m benchmarks --out bench_results

A row of the table is a function that gives a `Pair`; `rows.py` lists them, and where the next one goes.
"""

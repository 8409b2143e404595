"""Other curvatures of a stage than EK-FAC.

Dense, the exact Gauss-Newton product and the dial between, Shampoo's, unrolled, Adam's.
"""

"""Every method's scores on one test-bed, as all stages of the study use them."""

"""The mathematics of denoisers: noise, preconditioning, denoisers, objectives, methods, and exact denoisers to prove them."""

"""The measurements: `python -m bench`. What is compared, how the time is taken, and what is printed."""

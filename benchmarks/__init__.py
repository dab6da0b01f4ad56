"""Measurements, side by side in one run. Ratios are what counts; times are of this machine at this moment."""

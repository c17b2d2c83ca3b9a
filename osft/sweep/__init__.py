"""One training at several unfreeze ratios: their runs, the trade-off between gain and forgetting, the ratio to take."""

"""What a model forgot and what it learnt: lm-eval on base and tuned model, paired statistics, a report."""

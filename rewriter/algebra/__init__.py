"""The algebra of attention: sizes, primitive forms, index pull-back, terms, evaluation in float64."""

"""The measures of interference in a world whose answer is known (`unbraid lab interference`)."""

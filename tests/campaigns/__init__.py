"""Long trials of what is promised; each prints what it tried and what it found."""

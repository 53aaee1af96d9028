"""The numeric heart: exchanges become a clock, two streams become one table."""

"""The roles on Ray: the three placements, the teacher pool, and the actors behind them."""

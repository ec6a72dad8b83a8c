"""Claims about formulas: measured on problems whose constants, saddles and minima are known in closed form."""

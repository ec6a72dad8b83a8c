"""Claims about theory, measured on problems whose constants, saddles and minima are known in closed form."""

"""What ``from microseg import ...`` offers: segment images, train a segmenter, adapt it to a new lab."""

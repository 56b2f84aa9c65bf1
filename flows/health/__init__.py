"""What the doctor looks at; each look yields what it found, in sentences."""

"""Reports that a person reads: one page of HTML, or a picture."""

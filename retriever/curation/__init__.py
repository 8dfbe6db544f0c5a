"""The pool itself: which of its examples to annotate or to keep (`curate`), and what is wrong with it (`audit`)."""

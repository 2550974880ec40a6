//! Objects, kept documents, verdicts.

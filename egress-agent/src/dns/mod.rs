//! Captured DNS queries: virtual addresses for registered names, everything
//! else forwarded to the resolver that the application asked.

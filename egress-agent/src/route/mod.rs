//! VirtualService at run time: match, rewrite, split, timeout and retry plan.

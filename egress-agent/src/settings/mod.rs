//! Settings: file, environment, flags, in rising order of rank.

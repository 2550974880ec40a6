//! Which endpoint takes a connection or request, and when none may: resolution,
//! locality, balance, limits, outlier ejection, health checks.

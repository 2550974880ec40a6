//! One record for each connection and request, to metrics, access log, traces.

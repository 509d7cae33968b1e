"""One file a format that prunus reads: each has a `FORMAT`, and the fuzzer finds it here."""

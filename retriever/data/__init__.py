"""The sample pool and queries that `retriever demo` runs on."""

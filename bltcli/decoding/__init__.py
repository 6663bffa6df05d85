"""The decoding methods: WHAT is generated and in what order, over anything that implements `ByteModel`."""

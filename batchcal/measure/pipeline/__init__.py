"""The input pipeline alone: which DataLoader brings batches fastest. No model, no step."""

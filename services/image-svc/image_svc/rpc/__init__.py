"""The two services of image-svc: the CRI's ImageService and bulkhead.images.v1.Images."""

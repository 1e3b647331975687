"""What two or more of Bulkhead's services use."""

__version__ = "0.1.0"

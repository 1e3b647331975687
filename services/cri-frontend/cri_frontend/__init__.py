"""cri-frontend: the socket the kubelet talks to; it owns nothing and forwards undecoded bytes."""

// ocicrypt is the reference library as a program: it encrypts and decrypts one layer blob, and is a key provider.
//
//	ocicrypt encrypt -recipient SCHEME:VALUE ... [-key FILE[:pass=PASSWORD]] [-descriptor FILE] PLAIN CIPHER
//	ocicrypt decrypt -key FILE[:pass=PASSWORD] ... -descriptor FILE CIPHER PLAIN
//	ocicrypt provide                    (a key provider's command: the request on stdin, the response on stdout)
//	ocicrypt serve SOCKET               (the same as a gRPC server)
//
// encrypt prints the new annotations as JSON; with a descriptor that has some, it adds recipients and leaves the blob.
// The provider wraps with AES-256-GCM under the key in OCICRYPT_TEST_KEY (hex), and writes each request to the file
// that OCICRYPT_TEST_LOG names, if it does.
package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/helpers"
	"github.com/containers/ocicrypt/keywrap/keyprovider"
	keyproviderpb "github.com/containers/ocicrypt/utils/keyprovider"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

type list []string

func (l *list) String() string     { return fmt.Sprint(*l) }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("encrypt, decrypt, provide or serve"))
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	var recipients, keys list
	flags.Var(&recipients, "recipient", "")
	flags.Var(&keys, "key", "")
	descriptor := flags.String("descriptor", "", "")
	if err := flags.Parse(os.Args[2:]); err != nil {
		fail(err)
	}
	var err error
	switch os.Args[1] {
	case "encrypt":
		err = encrypt(recipients, keys, *descriptor, flags.Arg(0), flags.Arg(1))
	case "decrypt":
		err = decrypt(keys, *descriptor, flags.Arg(0), flags.Arg(1))
	case "provide":
		err = provide(os.Stdin, os.Stdout)
	case "serve":
		err = serve(flags.Arg(0))
	default:
		err = errors.New("encrypt, decrypt, provide or serve")
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func load(path string) (desc ocispec.Descriptor, err error) {
	if path == "" {
		return
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &desc)
	}
	return
}

func encrypt(recipients, keys []string, descriptor, plain, cipher string) error {
	desc, err := load(descriptor)
	if err != nil {
		return err
	}
	cc, err := helpers.CreateCryptoConfig(recipients, keys)
	if err != nil {
		return err
	}
	in, err := os.Open(plain)
	if err != nil {
		return err
	}
	defer in.Close()
	if desc.Digest == "" {
		if desc.Digest, err = digest.FromReader(in); err != nil {
			return err
		}
		if _, err = in.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	reader, finish, err := ocicrypt.EncryptLayer(cc.EncryptConfig, in, desc)
	if err != nil {
		return err
	}
	if reader != nil {
		out, err := os.Create(cipher)
		if err != nil {
			return err
		}
		defer out.Close()
		if _, err = io.Copy(out, reader); err != nil {
			return err
		}
	}
	annotations, err := finish()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(annotations)
}

func decrypt(keys []string, descriptor, cipher, plain string) error {
	desc, err := load(descriptor)
	if err != nil {
		return err
	}
	cc, err := helpers.CreateCryptoConfig(nil, keys)
	if err != nil {
		return err
	}
	in, err := os.Open(cipher)
	if err != nil {
		return err
	}
	defer in.Close()
	reader, _, err := ocicrypt.DecryptLayer(cc.DecryptConfig, in, desc, false)
	if err != nil {
		return err
	}
	out, err := os.Create(plain)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(out, reader)
	return err
}

func provide(in io.Reader, out io.Writer) error {
	data, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	answer, err := answerTo(data)
	if err != nil {
		return err
	}
	_, err = out.Write(answer)
	return err
}

func answerTo(request []byte) ([]byte, error) {
	if path := os.Getenv("OCICRYPT_TEST_LOG"); path != "" {
		if err := os.WriteFile(path, request, 0o666); err != nil {
			return nil, err
		}
	}
	var input keyprovider.KeyProviderKeyWrapProtocolInput
	if err := json.Unmarshal(request, &input); err != nil {
		return nil, err
	}
	aead, err := seal()
	if err != nil {
		return nil, err
	}
	var output keyprovider.KeyProviderKeyWrapProtocolOutput
	switch input.Operation {
	case keyprovider.OpKeyWrap:
		nonce := make([]byte, aead.NonceSize())
		if _, err := rand.Read(nonce); err != nil {
			return nil, err
		}
		output.KeyWrapResults.Annotation = aead.Seal(nonce, nonce, input.KeyWrapParams.OptsData, nil)
	case keyprovider.OpKeyUnwrap:
		blob := input.KeyUnwrapParams.Annotation
		if len(blob) < aead.NonceSize() {
			return nil, errors.New("annotation too short")
		}
		plain, err := aead.Open(nil, blob[:aead.NonceSize()], blob[aead.NonceSize():], nil)
		if err != nil {
			return nil, err
		}
		output.KeyUnwrapResults.OptsData = plain
	default:
		return nil, fmt.Errorf("operation %q", input.Operation)
	}
	return json.Marshal(output)
}

func seal() (cipher.AEAD, error) {
	key, err := hex.DecodeString(os.Getenv("OCICRYPT_TEST_KEY"))
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

type server struct {
	keyproviderpb.UnimplementedKeyProviderServiceServer
}

func (s *server) WrapKey(_ context.Context, in *keyproviderpb.KeyProviderKeyWrapProtocolInput) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	return s.answer(in)
}

func (s *server) UnWrapKey(_ context.Context, in *keyproviderpb.KeyProviderKeyWrapProtocolInput) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	return s.answer(in)
}

func (s *server) answer(in *keyproviderpb.KeyProviderKeyWrapProtocolInput) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	answer, err := answerTo(in.KeyProviderKeyWrapProtocolInput)
	if err != nil {
		return nil, err
	}
	return &keyproviderpb.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: answer}, nil
}

func serve(socket string) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err = os.Chmod(socket, 0o666); err != nil {
		return err
	}
	s := grpc.NewServer()
	keyproviderpb.RegisterKeyProviderServiceServer(s, &server{})
	fmt.Println("serving")
	return s.Serve(listener)
}

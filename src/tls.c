/*-------------------------------------------------------------------------
 *
 * tls.c
 *	  TLS over a connected socket, as its client, without blocking.
 *
 * Files are read anew for every connection, so that certificates can be
 * exchanged under a running worker.
 *
 * Objects of OpenSSL are not from palloc: a reset callback of the memory
 * context releases them.  Code that OpenSSL calls back must not allocate or raise errors: a longjmp through a
 * foreign library leaves it in pieces.
 *
 * The same process may have more of OpenSSL than this: PostgreSQL's own, with
 * "ssl = on".  What the two share is the queue of errors, which is therefore
 * emptied before every call whose errors are looked at, and after.
 *
 * SIGPIPE is ignored in every backend; OpenSSL's writes rely on that.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "storage/latch.h"
#include "utils/memutils.h"

#include "secret.h"
#include "tls.h"

/* A private key, in PEM, is smaller than that. */
#define TLS_KEY_FILE_MAX	65536

/* SSL_write takes an int; this is plenty and far from its limit */
#define TLS_WRITE_MAX	(1024 * 1024)

struct OutboxTls
{
	MemoryContextCallback release;
	char	   *host;
	int			port;
	SSL_CTX    *ctx;
	SSL		   *ssl;			/* NULL before outbox_tls_start() */
	bool		verify;
	char	   *server_name;	/* NULL: the host's */
	bool		has_certificate;	/* our own */
	char		words[OUTBOX_FAILURE_DETAIL_LEN];	/* of take_tls_error() */
	OutboxTrust refused;		/* for what the peer or OpenSSL said of it */
	bool		open;			/* the handshake is complete */
	bool		lost;			/* and the connection is no longer */
	bool		read_wants_write;	/* what OpenSSL waits for, if that is */
	bool		write_wants_read;	/* the opposite of what was asked */
	char		subject[256];	/* of a certificate that was not accepted */
	int			days_left;		/* of it */
};


/* --------
 * Failing
 * --------
 */

/* What a reason that only two sides together can have comes to. */
static OutboxTrust
trust_of_reason(int reason)
{
	switch (reason)
	{
		case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
		case SSL_R_UNSUPPORTED_PROTOCOL:
			return OUTBOX_TRUST_NO_VERSION;

			/*
			 * The peer's alerts about our certificate; Erlang says handshake
			 * failure for one that is missing, unless it speaks TLS 1.3.
			 */
		case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
		case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
		case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
		case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
		case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
		case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
		case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
		case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
			return OUTBOX_TRUST_NOT_US;
		default:
			return OUTBOX_TRUST_OK;
	}
}

/*
 * What OpenSSL complained of first, which is nearest to the cause.  Its error
 * queue is left empty.
 */
static const char *
take_tls_error(OutboxTls *tls)
{
	unsigned long code = ERR_peek_error();
	const char *reason;

	ERR_clear_error();
	if (ERR_GET_LIB(code) == ERR_LIB_SSL)
		tls->refused = trust_of_reason(ERR_GET_REASON(code));
#ifdef ERR_SYSTEM_ERROR
	/* OpenSSL 3 has no words for these */
	if (ERR_SYSTEM_ERROR(code))
		return strerror(ERR_GET_REASON(code));
#endif
	reason = ERR_reason_error_string(code);
	if (reason == NULL)
		reason = "unknown TLS error";
	snprintf(tls->words, sizeof(tls->words), "%s%s", reason,
			 tls->refused == OUTBOX_TRUST_NO_VERSION ?
			 ": the broker speaks no version of TLS that is allowed (see the option tls_min_version)" :
			 tls->refused != OUTBOX_TRUST_NOT_US ? "" :
			 tls->has_certificate ?
			 ": the broker does not accept the client certificate" :
			 ": the broker may demand a client certificate (see the options certfile and keyfile)");
	return tls->words;
}

static void
fail_tls(const OutboxTls *tls, const char *detail, OutboxFailure *failure)
{
	outbox_failure_set(failure,
					   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
					   detail,
					   "could not establish TLS with host \"%s\", port %d",
					   tls->host, tls->port);
}

/* Did the peer just go away, as far as the last call of OpenSSL tells? */
static bool
tls_saw_eof(int error, int save_errno)
{
	if (error == SSL_ERROR_ZERO_RETURN)
		return true;
	if (error == SSL_ERROR_SYSCALL)
		return save_errno == 0;
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
	if (error == SSL_ERROR_SSL)
		return ERR_GET_REASON(ERR_peek_error()) ==
			SSL_R_UNEXPECTED_EOF_WHILE_READING;
#endif
	return false;
}


/* --------
 * Certificates
 * --------
 */

/* Whose certificate it is, and how long it is still good. */
static void
describe_certificate(X509 *cert, char *subject, Size size, int *days_left)
{
	int			seconds;

	(void) X509_NAME_oneline(X509_get_subject_name(cert), subject, (int) size);
	if (ASN1_TIME_diff(days_left, &seconds, NULL,
					   X509_get0_notAfter(cert)) != 1)
		*days_left = 0;
	else if (*days_left == 0 && seconds < 0)
		*days_left = -1;
}

/*
 * Called by OpenSSL for each certificate of the chain.  It decides nothing; it
 * notes which one is not accepted, for the peer's is not kept then.
 */
static int
note_verification(int ok, X509_STORE_CTX *store)
{
	SSL		   *ssl = X509_STORE_CTX_get_ex_data(store,
												 SSL_get_ex_data_X509_STORE_CTX_idx());
	OutboxTls  *tls = SSL_get_app_data(ssl);
	X509	   *cert = X509_STORE_CTX_get_current_cert(store);

	if (!ok && cert != NULL)
		describe_certificate(cert, tls->subject, sizeof(tls->subject),
							 &tls->days_left);
	return ok;
}

static OutboxTrust
trust_of(long verified)
{
	switch (verified)
	{
		case X509_V_OK:
			return OUTBOX_TRUST_OK;
		case X509_V_ERR_CERT_HAS_EXPIRED:
			return OUTBOX_TRUST_EXPIRED;
		case X509_V_ERR_CERT_NOT_YET_VALID:
			return OUTBOX_TRUST_NOT_YET;
		case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
		case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
		case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
		case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
		case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
			return OUTBOX_TRUST_NO_CA;
		case X509_V_ERR_HOSTNAME_MISMATCH:
		case X509_V_ERR_IP_ADDRESS_MISMATCH:
			return OUTBOX_TRUST_NAME;
		default:
			return OUTBOX_TRUST_OTHER;
	}
}

/* Note the certificate if it ends before the one that is noted. */
static void
report_certificate(X509 *cert, OutboxTlsReport *report)
{
	char		subject[sizeof(report->subject)];
	int			days_left;

	describe_certificate(cert, subject, sizeof(subject), &days_left);
	if (report->subject[0] != '\0' && days_left >= report->days_left)
		return;
	strlcpy(report->subject, subject, sizeof(report->subject));
	report->days_left = days_left;
}

/* Of the chain that was accepted, and of ours, what ends first. */
static void
report_chain(const OutboxTls *tls, OutboxTlsReport *report)
{
	STACK_OF(X509) *chain = SSL_get0_verified_chain(tls->ssl);
	X509	   *own = SSL_get_certificate(tls->ssl);

	for (int i = 0; chain != NULL && i < sk_X509_num(chain); i++)
		report_certificate(sk_X509_value(chain, i), report);
	if (own != NULL)
		report_certificate(own, report);
}

void
outbox_tls_report(const OutboxTls *tls, OutboxTlsReport *report)
{
	memset(report, 0, sizeof(*report));
	if (tls->ssl == NULL)
		return;
	report->unverified = !tls->verify;
	if (tls->verify)
		report->trust = trust_of(SSL_get_verify_result(tls->ssl));
	if (report->trust == OUTBOX_TRUST_OK)
		report->trust = tls->refused;
	if (report->trust != OUTBOX_TRUST_OK)
	{
		strlcpy(report->subject, tls->subject, sizeof(report->subject));
		report->days_left = tls->days_left;
	}
	else if (tls->open)
	{
		strlcpy(report->version, SSL_get_version(tls->ssl),
				sizeof(report->version));
		report_chain(tls, report);
	}
}


/* --------
 * Making ready
 * --------
 */

static bool
load_authorities(OutboxTls *tls, const OutboxTlsOptions *options,
				 OutboxFailure *failure)
{
	const char *file = options->cacertfile;
	const char *dir = options->cacertdir;
	int			ok;

	if (file && !outbox_file_check(file, "CA certificate file", failure))
		return false;
	if (dir && !outbox_file_check_hashed(dir, "CA certificate directory",
										 failure))
		return false;
	if (file || dir)
		ok = SSL_CTX_load_verify_locations(tls->ctx, file, dir);
	else
		ok = SSL_CTX_set_default_verify_paths(tls->ctx);
	if (ok != 1)
		outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR,
						   take_tls_error(tls),
						   "could not load CA certificates from \"%s\"",
						   file ? file : dir ? dir : "the system's store");
	return ok == 1;
}

/* A passphrase, and whether OpenSSL has asked for it. */
typedef struct OutboxPassphrase
{
	const char *words;			/* NULL: none */
	bool		asked;
} OutboxPassphrase;

/*
 * OpenSSL wants a passphrase.  Without this it would ask at a terminal; what
 * it gets if there is none is no passphrase, not an empty one.
 */
static int
give_passphrase(char *buf, int size, int rwflag, void *arg)
{
	OutboxPassphrase *passphrase = (OutboxPassphrase *) arg;
	Size		len;

	if (passphrase == NULL)
		return -1;
	passphrase->asked = true;
	if (passphrase->words == NULL)
		return -1;
	len = strlen(passphrase->words);
	if (len > (Size) size)
		return -1;
	memcpy(buf, passphrase->words, len);
	return (int) len;
}

/* The private key out of what stood in its file; NULL with *failure. */
static EVP_PKEY *
parse_key(OutboxTls *tls, const char *path, const char *contents,
		  const char *key_password, OutboxFailure *failure)
{
	OutboxPassphrase passphrase = {.words = key_password};
	BIO		   *bio = BIO_new_mem_buf(contents, -1);
	EVP_PKEY   *key = NULL;
	const char *detail;

	if (bio)
		key = PEM_read_bio_PrivateKey(bio, NULL, give_passphrase, &passphrase);
	BIO_free(bio);
	if (key)
		return key;
	detail = take_tls_error(tls);
	if (passphrase.asked)
		detail = key_password ?
			"It is encrypted, and not with the passphrase that was given." :
			"It is encrypted: set keyfile_password or keyfile_password_file.";
	outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR, detail,
					   "could not load key file \"%s\"", path);
	return NULL;
}

static bool
load_key(OutboxTls *tls, const OutboxTlsOptions *options,
		 const char *key_password, OutboxFailure *failure)
{
	char	   *contents = outbox_secret_read(options->keyfile, "key file",
											  TLS_KEY_FILE_MAX, failure);
	EVP_PKEY   *key;
	bool		ok;

	if (contents == NULL)
		return false;
	key = parse_key(tls, options->keyfile, contents, key_password, failure);
	outbox_secret_forget(contents);
	if (key == NULL)
		return false;

	/* this also compares it with the certificate */
	ok = SSL_CTX_use_PrivateKey(tls->ctx, key) == 1;
	EVP_PKEY_free(key);
	if (!ok)
		outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR,
						   take_tls_error(tls),
						   "key file \"%s\" is not for certificate file \"%s\"",
						   options->keyfile, options->certfile);
	return ok;
}

/* Our own certificate, if there is one. */
static bool
load_certificate(OutboxTls *tls, const OutboxTlsOptions *options,
				 const char *key_password, OutboxFailure *failure)
{
	const char *path = options->certfile;

	if (path == NULL)
		return true;
	if (!outbox_file_check(path, "certificate file", failure))
		return false;
	if (SSL_CTX_use_certificate_chain_file(tls->ctx, path) != 1)
	{
		outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR,
						   take_tls_error(tls),
						   "could not load certificate file \"%s\"", path);
		return false;
	}
	tls->has_certificate = true;
	return load_key(tls, options, key_password, failure);
}

static bool
create_context(OutboxTls *tls, const OutboxTlsOptions *options,
			   OutboxFailure *failure)
{
	int			version = options->min_version == OUTBOX_TLS_1_3 ?
		TLS1_3_VERSION : TLS1_2_VERSION;

	ERR_clear_error();
	tls->ctx = SSL_CTX_new(TLS_client_method());
	if (tls->ctx == NULL ||
		SSL_CTX_set_min_proto_version(tls->ctx, version) != 1)
	{
		fail_tls(tls, take_tls_error(tls), failure);
		return false;
	}
	SSL_CTX_set_default_passwd_cb(tls->ctx, give_passphrase);
	SSL_CTX_set_verify(tls->ctx,
					   tls->verify ? SSL_VERIFY_PEER : SSL_VERIFY_NONE,
					   note_verification);

	/* output waits in a buffer that grows, and so moves, between two tries */
	SSL_CTX_set_mode(tls->ctx, SSL_MODE_ENABLE_PARTIAL_WRITE |
					 SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	/* a broker that sends nothing but session tickets must not keep us */
	SSL_CTX_clear_mode(tls->ctx, SSL_MODE_AUTO_RETRY);
	return true;
}

/* The reset callback of the memory context. */
static void
release_tls(void *arg)
{
	OutboxTls  *tls = (OutboxTls *) arg;

	if (tls->ssl)
	{
		/* a polite close_notify, if the socket takes it at once */
		if (tls->open && !tls->lost)
			(void) SSL_shutdown(tls->ssl);
		SSL_free(tls->ssl);
	}
	if (tls->ctx)
		SSL_CTX_free(tls->ctx);
	ERR_clear_error();
}

OutboxTls *
outbox_tls_create(const OutboxTlsOptions *options, const char *key_password,
				  const char *host, int port, OutboxFailure *failure)
{
	OutboxTls  *tls = palloc0(sizeof(OutboxTls));

	tls->host = pstrdup(host);
	tls->port = port;
	tls->verify = options->verify == OUTBOX_VERIFY_PEER;
	if (options->server_name)
		tls->server_name = pstrdup(options->server_name);
	tls->release.func = release_tls;
	tls->release.arg = tls;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &tls->release);
	if (create_context(tls, options, failure) &&
		(!tls->verify || load_authorities(tls, options, failure)) &&
		load_certificate(tls, options, key_password, failure))
		return tls;
	return NULL;
}


/* --------
 * The handshake
 * --------
 */

/* The certificate must be for the IP address that the host option names. */
static bool
expect_address(OutboxTls *tls, const OutboxAddress *address)
{
	X509_VERIFY_PARAM *param = SSL_get0_param(tls->ssl);
	const struct sockaddr_storage *addr = &address->addr;
	const void *ip;
	size_t		len;

	if (addr->ss_family == AF_INET)
	{
		ip = &((const struct sockaddr_in *) addr)->sin_addr;
		len = 4;
	}
	else
	{
		ip = &((const struct sockaddr_in6 *) addr)->sin6_addr;
		len = 16;
	}
	return X509_VERIFY_PARAM_set1_ip(param, ip, len) == 1;
}

/* The certificate must be for the name, which the broker is told (SNI). */
static bool
expect_name(OutboxTls *tls, const char *name)
{
	SSL_set_hostflags(tls->ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
	return SSL_set1_host(tls->ssl, name) == 1 &&
		SSL_set_tlsext_host_name(tls->ssl, name) == 1;
}

/* An address is no name that one could be told. */
static bool
expect_peer(OutboxTls *tls, const OutboxAddress *address)
{
	if (tls->server_name)
		return expect_name(tls, tls->server_name);
	return address ? expect_address(tls, address) :
		expect_name(tls, tls->host);
}

bool
outbox_tls_start(OutboxTls *tls, pgsocket fd, const OutboxAddress *address,
				 OutboxFailure *failure)
{
	ERR_clear_error();
	tls->ssl = SSL_new(tls->ctx);
	if (tls->ssl != NULL &&
		SSL_set_app_data(tls->ssl, tls) == 1 &&
		SSL_set_fd(tls->ssl, fd) == 1 &&
		expect_peer(tls, address))
		return true;
	fail_tls(tls, take_tls_error(tls), failure);
	return false;
}

static void
fail_handshake(OutboxTls *tls, int error, int save_errno,
			   OutboxFailure *failure)
{
	long		verified = SSL_get_verify_result(tls->ssl);

	if (tls->verify && verified != X509_V_OK)
		outbox_failure_set(failure,
						   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
						   X509_verify_cert_error_string(verified),
						   "could not verify the certificate of host \"%s\", port %d",
						   tls->host, tls->port);
	else if (tls_saw_eof(error, save_errno))
		fail_tls(tls, "connection closed by the broker", failure);
	else if (error == SSL_ERROR_SYSCALL)
		fail_tls(tls, strerror(save_errno), failure);
	else
		fail_tls(tls, take_tls_error(tls), failure);
	ERR_clear_error();
}

OutboxTlsProgress
outbox_tls_handshake(OutboxTls *tls, OutboxFailure *failure)
{
	int			error;
	int			save_errno;

	ERR_clear_error();
	errno = 0;
	error = SSL_get_error(tls->ssl, SSL_connect(tls->ssl));
	save_errno = errno;
	tls->read_wants_write = error == SSL_ERROR_WANT_WRITE;
	if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
		return OUTBOX_TLS_WAITS;
	if (error == SSL_ERROR_NONE)
	{
		tls->open = true;
		return OUTBOX_TLS_OPEN;
	}
	fail_handshake(tls, error, save_errno, failure);
	return OUTBOX_TLS_FAILED;
}


/* --------
 * Reading and writing
 * --------
 */

/*
 * What a call of SSL_read or SSL_write that moved nothing comes to: 0 would
 * block, -1 with *detail.  *opposite tells if the call waits for the other
 * direction.
 */
static int
tls_stalled(OutboxTls *tls, int result, int opposite_error, bool *opposite,
			const char **detail)
{
	int			save_errno = errno;
	int			error = SSL_get_error(tls->ssl, result);

	*opposite = error == opposite_error;
	if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
		return 0;

	tls->lost = true;
	if (tls_saw_eof(error, save_errno))
		*detail = NULL;
	else if (error == SSL_ERROR_SYSCALL)
		*detail = strerror(save_errno);
	else
		*detail = take_tls_error(tls);
	ERR_clear_error();
	return -1;
}

ssize_t
outbox_tls_read(OutboxTls *tls, char *buf, Size len, const char **detail)
{
	int			n;

	ERR_clear_error();
	errno = 0;
	n = SSL_read(tls->ssl, buf, (int) Min(len, (Size) INT_MAX));
	if (n > 0)
	{
		tls->read_wants_write = false;

		/* whatever a write waited for may have been in there */
		tls->write_wants_read = false;
		return n;
	}
	return tls_stalled(tls, n, SSL_ERROR_WANT_WRITE, &tls->read_wants_write,
					   detail);
}

ssize_t
outbox_tls_write(OutboxTls *tls, const char *buf, Size len,
				 const char **detail)
{
	int			n;

	ERR_clear_error();
	errno = 0;
	n = SSL_write(tls->ssl, buf, (int) Min(len, (Size) TLS_WRITE_MAX));
	if (n > 0)
	{
		tls->write_wants_read = false;
		return n;
	}
	return tls_stalled(tls, n, SSL_ERROR_WANT_READ, &tls->write_wants_read,
					   detail);
}

uint32
outbox_tls_events(const OutboxTls *tls, bool want_write)
{
	if (!tls->open)
		return tls->read_wants_write ?
			WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE;

	/* a write that needs input first would spin on a writeable socket */
	if ((want_write && !tls->write_wants_read) || tls->read_wants_write)
		return WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE;
	return WL_SOCKET_READABLE;
}
